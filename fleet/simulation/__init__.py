"""Links, devices, absences and time of a simulated fleet."""
