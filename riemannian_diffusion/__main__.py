"""`python -m riemannian_diffusion` is the command `riemannian-diffusion`."""

from riemannian_diffusion.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
