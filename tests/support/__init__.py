"""What the tests share and what is no test itself: helpers, and the checks that tox runs as commands."""
