"""Feedback Loop: people teach their diffusion models, in ComfyUI graphs."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI when it loads the pack; nothing heavy is imported before that."""
    from .nodes import FeedbackLoopExtension

    return FeedbackLoopExtension()
