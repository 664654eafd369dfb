"""The arithmetic in eager torch: any device, any dtype."""
