"""What tests share; most of it is met as a fixture of `tests/conftest.py`."""
