"""The live console: what a terminal shows of one node's replica, and what a key does to it.

- `state`: what is shown, and what keys and pictures do to it (pure).
- `columns`: what each table can show of a row, how it is written and sorted (pure).
- `views`: state, width and height -> styled lines (pure).
- `keys`: the one table of keys that feeds dispatch, help screen and footer.
- `text`: what of a foreign string may reach a terminal, and how wide it is there (pure).
- `screen`: the only import of curses. `app`: the loop, and the thread that talks to the node.

The console never imports plugin or cluster; it knows a node only through `connmon.client`.
"""
