"""What repeated data is worth: result tables, scaling laws, fits that say what they identify. Nothing distributed."""
