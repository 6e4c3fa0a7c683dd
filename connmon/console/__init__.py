"""The live console: what a terminal shows of one node's replica, and what keys and the mouse do to it.

Pure, from the rows of a node to the lines of the screen:

- Rows: `rows` has the types of all rows, `source` the queries of one table and the rows of its answers,
  `aggregate` sums of rows, `waits` who blocks whom.
- Tables: `columns` has the columns of each table, `fitting` fits them into the width, `panes` is one table
  with its order and cursor, `row_words` and `format` put rows and values into words.
- State: `state` is all that the screen depends on, `navigation` where Enter leads, `modes` what the next
  key means. `actions` and `prompt` are what keys and the mouse do; `keys` is the one table of keys for
  dispatch, help screen and footer.
- Screen: `layout` divides the height, `views` draws, with `header`, `details` and `help_screen`, styled
  `lines`; `text` sanitizes and measures foreign text.

Not pure: `app`, the loop; `screen`, the only import of curses; `fetcher`, the thread that talks to the
node; `local_process`, what this host's system says of a process; `replay`, a recording in the place of a
node.

The times and sizes are in `settings`. The console imports neither the plugin nor the cluster; it knows a
node only through `connmon.reader.client`.
"""
