"""What other processes see: three listeners, who may ask there, and how they are answered."""
