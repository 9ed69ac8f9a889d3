"""The steps of a flow, one module a step: thin Prefect tasks over ``denoise_core``, and the results table they fill."""
