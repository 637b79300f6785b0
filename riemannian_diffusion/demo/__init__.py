"""A small Stable Diffusion that ships with the package, its renderer and its images."""
