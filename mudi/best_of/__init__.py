"""Best of many: candidates for a picture are judged as they are made, and the best is kept."""
