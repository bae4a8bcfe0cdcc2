"""What people look at: report page, figures, TensorBoard."""
