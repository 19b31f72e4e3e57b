"""Pure decisions: facts in, plans out. No client, no clock, no event loop."""
