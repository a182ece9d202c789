"""The offline job: from a suspect and clean images to a version that can be served. Knows nothing of HTTP.

Read from the top; no module imports from a layer above its own.

    jobs/       what the commands run
        protect     the whole job                       publish     calibrate, gate, write the version
        scan        import and inversion alone          repair      unlearn, and write the suspect's own file
        graphs      the version as ONNX                 export      the user's torch network as ONNX
        evaluate    measure a published version
        report      what the page says (case, words,    results     what the jobs end with
                    charts, pictures, figures, pages)   compare     two versions; the store's index
    steps/      the method
        run             what all steps share            accuracy         what the suspect itself is right on
        clean_reference the suspect's answers to clean images
        changes         ordinary changes, tried first   candidates       two defences, and which one is kept
        control         did the search work at all?     quick            a look of seconds
        budget          what there is time for
        screen          every family, every class       verdict          gaps, evidence, suspected targets
        few             the same with few classes       last_layer       which row of weights stands out
        invert          the objective of an inversion   decouple         benign mask and generator (Eq. 1, Eq. 2)
        starts          where an inversion starts       reinvert         the same through the defence
        find            all of that, in order           leads            what the next steps go by
        reviewed        what people's reviews teach
        pool            triggers that are trained on    mixture          which synthetic kinds are drawn how often
        purify          the purifier                    unlearn          the repaired copy
        penalty         how the answer is weighed       calibrate        flag score and threshold
        gate            may it be promoted?             tuning           how weights are tuned
        second_opinion  the defence where nothing stood out
        twin            innocent networks like the suspect
        augment         clean images, moved and mirrored
    inputs/     the user's files, checked: data, folders, npz, load, reviewed;
                logic in the graph; split; profile
    triggers/   one file a trigger family; synthetic triggers
    graph/      to_onnx; weights back into the suspect's file; state_dict of torch.save
    compute, progress, stages (what each cost), types
"""
