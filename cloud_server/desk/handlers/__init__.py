"""Answers to requests: a file for each way of learning, and one for what is asked in every turn."""
