from tests.support.sandboxes import world  # noqa: F401
