"""The replicated state machine and what it answers. Pure: no I/O, no clock, no randomness."""
