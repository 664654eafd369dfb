"""The arithmetic in plain torch: any device, any dtype."""
