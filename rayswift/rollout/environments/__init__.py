"""Tools and environments that come with RaySwift."""
