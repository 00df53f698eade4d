"""`blackfleet doctor`: what is here of what a fleet needs, and what to install; imports little by itself."""
