"""ComfyUI nodes. They need torch and NumPy alone; drawing masks needs OpenCV too."""
