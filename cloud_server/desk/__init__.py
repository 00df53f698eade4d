"""What vehicles send: registered, checked, answered once."""
