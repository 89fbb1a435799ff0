"""What a diffusion model is to the rest of the pack: its forward process and what follows from it."""
