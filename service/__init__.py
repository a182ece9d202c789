"""The REST service: ONNX Runtime behind FastAPI, without PyTorch and without knowledge of training.

Read it in the order that a request takes:

    main        process: server, signals, drain                 (`run(settings)`)
    settings    every setting in one place
    app         `create_app(settings)`: parts, lifespan, routes
    middleware  request id, metrics, body limits, admin token   (before any handler)
    api/        thin HTTP layers: predict (outside of FastAPI), v2, health, admin
    forms, oip  body -> encoded images, or a tensor
    core        admit -> decode -> batch -> answer              (knows no HTTP)
    images      encoded image -> pixels, under limits
    admission   places in the queue
    batcher     pixels of many requests -> one batch
    engine      batch -> outputs of the protected graph (binding: its buffers on a GPU)
    registry    which version is served; swaps it
    watch       flags that concentrate on one label, scores that drift
    jobs/       retraining as a subprocess
    problem, metrics, logs: errors, numbers and lines that all of them share
    memory      what a swapped model leaves behind
"""
