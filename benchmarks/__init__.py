"""Speed and memory, measured against the floor; RESULTS.md says what was measured."""
