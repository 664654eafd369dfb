"""The arithmetic beneath the losses. Nothing here validates, gathers or knows a user's option names."""
