"""`connmon demo`: a cluster and busy applications on this host, and the chaos that troubles them."""
