"""Models: find, load, adapt and measure them."""
