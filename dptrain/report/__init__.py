"""What a run tells: metrics for programs, progress for people."""
