"""What an observer of a run can learn from what crosses its network: attacks, validated on planted cases."""
