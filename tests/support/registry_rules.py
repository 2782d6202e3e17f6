"""The security rules of the Comfy Registry and of Manager's list, as checks of one Python file's source.

Source: the registry's standards, comfy-cli 1.23 (ruff S102, S307, E702) and what Manager's maintainers refuse.
"""

import ast
import io
import tokenize

# Programs, other people's code, other machines, other languages, and text that hides code.
BANNED_MODULES = {
    "subprocess", "multiprocessing", "pty", "shlex", "pip", "ensurepip", "venv", "uv", "importlib", "imp", "runpy",
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "code", "codeop", "ctypes", "cffi",
    "socket", "ssl", "http", "urllib", "urllib3", "requests", "aiohttp", "httpx", "ftplib", "smtplib", "telnetlib",
    "webbrowser", "huggingface_hub", "base64", "binascii", "zlib", "lzma", "bz2",
}  # fmt: skip
BANNED_NAMES = {"eval", "exec", "compile", "__import__", "globals", "__builtins__", "breakpoint"}
BANNED_ATTRIBUTES = {
    "os": {"system", "popen", "fork", "execl", "execv", "execve", "execvp", "spawnl", "spawnv", "startfile", "kill"},
    "torch": {"load"},
    "torch.hub": {"load", "load_state_dict_from_url", "download_url_to_file"},
    "np": {"load"},
    "numpy": {"load"},
}
# torch raises this error for a file that it refuses to read; catching it needs its name, and brings nothing else.
ALLOWED_IMPORTS = {"from pickle import UnpicklingError"}
INSTALL_WORDS = ("pip install", "-m pip", "uv pip", "git clone")


def findings(source: str) -> list[str]:
    """Return one line for each breach of the rules in a file's source."""
    found = [f"line {line}: two statements in one line" for line in _semicolons(source)]
    for node in ast.walk(ast.parse(source)):
        found += [f"line {node.lineno}: {text}" for text in _breaches(node)]
    return found


def _breaches(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return _imports(node)
    if isinstance(node, ast.Name) and node.id in BANNED_NAMES:
        return [node.id]
    if isinstance(node, ast.Attribute) and node.attr in BANNED_ATTRIBUTES.get(ast.unparse(node.value), ()):
        return [ast.unparse(node)]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [word for word in INSTALL_WORDS if word in node.value]
    return []


def _imports(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.ImportFrom) and node.level or ast.unparse(node) in ALLOWED_IMPORTS:
        return []
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
    breaches = [f"import of {name}" for name in names if name.split(".")[0] in BANNED_MODULES]
    if isinstance(node, ast.ImportFrom):
        banned = BANNED_ATTRIBUTES.get(node.module, ())
        breaches += [f"import of {node.module}.{alias.name}" for alias in node.names if alias.name in banned]
    return breaches


def _semicolons(source: str) -> list[int]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [token.start[0] for token in tokens if token.type == tokenize.OP and token.string == ";"]
