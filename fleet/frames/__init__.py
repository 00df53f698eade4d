"""Which frames a run uses: rendered where there are none, checked, allotted, recorded."""
