"""What reads one node, or asks each node of a cluster: connection, answers, printed formats, recordings.
No curses, and nothing of the node or the plugin.
"""
