"""The command line: arguments, output, and each command. A command's modules are imported when it runs."""
