"""The control process: takes requests, keeps jobs and events, starts workers. It waits, and never computes."""
