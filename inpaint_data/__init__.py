from inpaint_data.morphology import offset_mask
