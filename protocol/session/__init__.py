"""Conversations over an unreliable network: topics, transports, parts, links."""
