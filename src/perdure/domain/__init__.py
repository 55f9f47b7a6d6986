"""What may happen to the wire's objects. Pure: no I/O, no async, no clock, no framework."""
