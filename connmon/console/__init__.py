"""The live console: what a terminal shows of one node's replica, and what a key does to it.

Pure, from the rows to the screen:

- `source`: what to ask a node for a table, and the rows of its answers; `merging`: several rows made one.
- `tables`, `columns`, `forms`: what each table shows of a row, how it is fitted, how values are written.
- `panes`, `pages`, `state`: a table, where Enter leads, all that is shown; `handlers`, `mouse`: what
  changes it.
- `views`, with `header`, `details`, `helping`: state, width and height -> styled `lines`.
- `keys`: the one table of keys that feeds dispatch, help screen and footer.
- `text`: what of a foreign string may reach a terminal, and how wide it is there.

Not pure: `screen`, the only import of curses; `app`, the loop; `fetcher`, the thread that talks to the
node; `local`, what this host's system says of a process; `replay`, a recording in a node's place.

The console never imports plugin or cluster; it knows a node only through `connmon.reader.client`.
"""
