"""The paper's plan, tables and figures."""
