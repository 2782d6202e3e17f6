"""What the files that nodes write say of the graph that made them."""

import json

from comfy.cli_args import args


def metadata_of_graph(hidden) -> dict[str, str]:
    """The graph that a file was made by, as the host's own save nodes keep it; {} where its user wants none."""
    if args.disable_metadata or hidden is None:
        return {}
    graph = {"prompt": hidden.prompt} if hidden.prompt is not None else {}
    return {name: json.dumps(value) for name, value in (graph | (hidden.extra_pnginfo or {})).items()}
