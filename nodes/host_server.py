"""The host's server as nodes may meet it: there, or not, when the host's parts are used as a library."""

import sys


def running_server():
    """The host's PromptServer, None where none was started. Not imported here, because that alone does much."""
    module = sys.modules.get("server")
    return getattr(getattr(module, "PromptServer", None), "instance", None)
