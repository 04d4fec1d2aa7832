"""The model of the protocol: `history` is what must be true, `worker` what processes remember, `world` the server with the
real scripts, `steps` what workers decide, `truth` compares. `tests/gymq/store/test_protocol.py` plays with it; `operators` and
`outages` are parts of that machine.
"""
