"""The model of the protocol: `history` is what must be true, `worker` what processes remember, `world` the server with the
real scripts, `truth` compares them. `tests/gymq/test_scripts.py` plays with it.
"""
