# SPDX-License-Identifier: MIT

confdir = $(pkgdatadir)/conf
dist_conf_DATA = \
	%reldir%/depth-kitti.ini \
	%reldir%/depth-nyu.ini \
	%reldir%/depth.ini \
	%reldir%/mpiped.ini \
	%reldir%/pose-coco.ini \
	%reldir%/pose.ini \
	%reldir%/seg-ade20k-ms.ini \
	%reldir%/seg-ade20k.ini \
	%reldir%/seg-cityscapes-ms.ini \
	%reldir%/seg-cityscapes.ini \
	%reldir%/seg.ini

classesdir = $(pkgdatadir)/conf/classes
dist_classes_DATA = \
	%reldir%/classes/ade20k.json \
	%reldir%/classes/camvid.json \
	%reldir%/classes/cityscapes.json \
	%reldir%/classes/demo.json
