"""What makes runs go: dispatch, worker, turn, recorder, and the live side of the event log."""
