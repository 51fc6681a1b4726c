"""What is made of a trained policy by watching it. Floor 7."""
