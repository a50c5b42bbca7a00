"""The figures of a run's page, drawn by plotly in the browser."""
