"""Messages between the programs, one message a module."""
