"""What travels between processes, nodes and readers, and what they agree on. Pure, but for TLS contexts and
secret files: no sockets, threads or clocks.
"""
