"""What leaves a node by itself: Prometheus metrics over HTTP and the CSV dump."""
