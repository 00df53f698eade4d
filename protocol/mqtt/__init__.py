"""MQTT sessions: broker URLs, connections, one network thread for all clients of a process."""
