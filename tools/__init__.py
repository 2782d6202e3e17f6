"""Command-line tools around the pack: prepare a host, run a server, run a workflow. The pack never imports them."""
